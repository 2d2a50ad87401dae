"""Setting up OpenSearch to use the service, and checking that it does."""
