"""Models built with paddle.nn that Paddock is tried and tested on."""
