"""README, differences from 3.25, transcripts, house rules."""
