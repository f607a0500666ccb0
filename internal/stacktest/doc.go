// Package stacktest drives the docker-compose stack on a real engine, from
// outside: through its published ports, and by killing what runs in it. Its
// tests have the build tag "stack" and are run by make stack-test and make
// stack-test-cluster, which bring an engine and images.
package stacktest
