"""OpenAI's API: request and response bodies, without HTTP."""
