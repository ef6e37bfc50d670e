"""vLLM's paths for encoders: request and response bodies, without HTTP."""
