"""User interface of the app: the Gradio page and the API."""
