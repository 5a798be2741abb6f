"""Moving memories in bulk between files and a running service, as its client: it speaks gRPC and knows no database."""
