//! Behaviour of the real binary before real servers, one file per subject.

mod support;

mod servers;
