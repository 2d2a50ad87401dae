"""OpenSearch as the client of the service: `python -m app.opensearch` sets a cluster up, checks it and undoes it."""
