"""Benchmark JSON rendered as Markdown and pictures: `cd bench && python -m report`."""
