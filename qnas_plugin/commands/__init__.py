"""What each command does: a request in, a result out; for the command line, Python and every host alike."""
