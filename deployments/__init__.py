"""How the flows reach a machine: server, work pool, deployments."""
