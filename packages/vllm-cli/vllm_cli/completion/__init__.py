"""Shell completion: scripts for bash, zsh and fish, written from the commands' own options."""
