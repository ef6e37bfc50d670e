"""pydantic-ai: agents that need two tools, one after the other, with Qwen2.5-Coder-1.5B."""

from __future__ import annotations

import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL = OpenAIChatModel("qwen2.5-coder-1.5b", provider=OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none"))
GREEDY = {"temperature": 0, "max_tokens": 200}


def balance() -> None:
    called = []
    system = "Use the tools to find facts. Answer in one sentence when you have them."
    agent = Agent(MODEL, model_settings=GREEDY, system_prompt=system)

    @agent.tool_plain
    def find_customer(name: str) -> str:
        """Find the id of a customer by name."""
        called.append(("find_customer", name))
        return '{"customer_id": 4711}'

    @agent.tool_plain
    def get_balance(customer_id: int) -> str:
        """Get the balance in euros of the customer with this id."""
        called.append(("get_balance", customer_id))
        return '{"balance": "812 euros"}'

    found = agent.run_sync("Find the customer Smith, then tell me the balance.")
    assert called[:2] == [("find_customer", "Smith"), ("get_balance", 4711)], called
    assert "812" in found.output, found.output


def password() -> None:
    called = []
    agent = Agent(MODEL, model_settings=GREEDY)

    @agent.tool_plain
    def list_files(folder: str) -> list[str]:
        """List the files in a folder."""
        called.append(("list_files", folder))
        return ["notes.txt"]

    @agent.tool_plain
    def read_file(path: str) -> str:
        """Read a file."""
        called.append(("read_file", path))
        return "The password is swordfish."

    found = agent.run_sync("List the files in the folder docs, read the file that is there, and tell me the password.")
    assert [name for name, _ in called][:2] == ["list_files", "read_file"], called
    assert "swordfish" in found.output, found.output


if __name__ == "__main__":
    balance()
    password()
