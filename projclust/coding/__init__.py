"""Tables coded in few bits: classes of rows, coordinates in shared or own bases, scalar and trellis codes."""
