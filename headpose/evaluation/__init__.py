"""From numbers to what people read of a test."""
