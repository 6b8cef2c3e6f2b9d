"""`driftline demo`: the whole engine on one machine with nothing installed, and a screen that shows it at work."""
