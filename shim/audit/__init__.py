"""What was decided and what happened, written down without ever holding up a request."""
