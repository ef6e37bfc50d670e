"""Chat with tools: messages → prompt and grammar; the model's text → reasoning, text and tool calls."""
