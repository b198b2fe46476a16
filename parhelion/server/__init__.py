"""The HTTP server: OpenAI's interface in front of an engine. It imports no torch."""
