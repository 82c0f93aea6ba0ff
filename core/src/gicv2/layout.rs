//! The registers of GICv2 by frame: where they are, how they may be accessed.
