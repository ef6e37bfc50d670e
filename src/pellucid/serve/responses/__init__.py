"""OpenAI's Responses API: request and response bodies, without HTTP."""
