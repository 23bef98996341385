"""A page in the browser to try a trained autoencoder on; needs Gradio (the extra `web`)."""
