"""llama.cpp's own paths: request and response bodies, without HTTP."""
