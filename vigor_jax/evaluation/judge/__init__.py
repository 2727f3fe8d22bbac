"""Another model that judges answers, over an OpenAI-compatible API."""
