"""Our wheels: built natively or for another architecture, audited, installed."""
