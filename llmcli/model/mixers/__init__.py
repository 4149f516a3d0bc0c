"""What stands in attention's place in recurrent layers: one file per mixer, with the state that it keeps."""
