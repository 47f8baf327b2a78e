//! Tests of the publish path.
