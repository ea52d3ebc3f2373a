"""OpenAI's HTTP API over the engine: who may ask, whose turn it is, what answers look like. Needs the serve extra."""
