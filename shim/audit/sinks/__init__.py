"""Where the audit trail writes its events."""
