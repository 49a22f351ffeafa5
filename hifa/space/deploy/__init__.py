"""Deployment of the app: upload as a Space, and warm-up at the start."""
