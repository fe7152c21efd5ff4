"""OpenAI's interface: requests checked and described from one declaration, answers whole or as events."""
