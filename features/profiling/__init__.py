"""What the columns of a source hold, in one pass and bounded memory."""
