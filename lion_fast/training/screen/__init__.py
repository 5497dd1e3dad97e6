"""What a run says while it trains. Nothing here decides, and nothing here is kept."""
