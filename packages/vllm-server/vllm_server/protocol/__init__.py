"""The wire formats: request and response objects of the OpenAI API, and nothing that computes."""
