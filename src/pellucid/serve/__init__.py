"""Other programs' doors to a model: OpenAI's requests and answers, and files of them.

openai/     bodies of OpenAI's requests → options; generations → bodies of its answers
batch.py    files of requests (``pellucid batch``)
"""
