"""Processes that train one network together: how they meet, what they exchange; no record."""
