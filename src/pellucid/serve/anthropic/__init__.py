"""Anthropic's Messages API: request and response bodies, without HTTP."""
