"""The command line: `strop train | search | test | export | estimate | show | doctor`."""
