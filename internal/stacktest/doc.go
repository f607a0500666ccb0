// Package stacktest tests the docker-compose stack on a real engine, from
// outside: it uses the published ports, and kills what runs in the stack. Its
// tests have the build tag "stack". make stack-test and make stack-test-cluster
// run them, and provide an engine and images.
package stacktest
