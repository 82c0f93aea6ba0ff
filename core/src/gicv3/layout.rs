//! The registers of GICv3 by frame: where they are, how they may be accessed.
