"""One module per variant: ``make_app(url, pool_size=10)`` returns the application, whose lifespan has to run."""
