"""The BentoML service: an API on HTTP, its page, and the model behind them."""
