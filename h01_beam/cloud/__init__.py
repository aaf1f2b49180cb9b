"""Google Cloud as launchers see it: errors in plain words, quota, Flex Templates."""
