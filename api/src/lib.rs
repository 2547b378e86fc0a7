//! From the socket to a committed row and a confirmed message.

pub mod relay;
