//! A process stopped before any one of its stores to the arena leaves a store that loses nothing.
//!
//! Every case is an operation on a prepared store. It is run again and again on a fresh copy, stopped one store later
//! each time, until it comes to its end. What it leaves is what `kill -9` there would have left: the shard is dirty, and
//! its next user rebuilds it. Then the arena must be sound, every page acknowledged before must be there unless the
//! operation was entitled to change it, the pages it named must be as the law allows, and everything must go on working.
#![cfg(feature = "crash-points")]

mod backing;
#[path = "../support/fixture.rs"]
mod fixture;
mod index;
mod migration;
mod put;
mod removal;
mod scene;
mod stopping;
#[path = "../support/mod.rs"]
mod support;
mod upkeep;
