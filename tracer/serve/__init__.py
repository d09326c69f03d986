"""Answering others: over the socket, over HTTP, and as SPIRE's workload attestor. Decides nothing: it asks."""
