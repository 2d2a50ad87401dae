"""HTTP: from a request to a call of the engine, and from vectors to an answer."""
