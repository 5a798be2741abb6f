"""The shell around the servicer: listeners, interceptors, health, reflection, processes, command line."""
