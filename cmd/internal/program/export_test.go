package program

// Misspelt is misspelt, which asks the environment only whether the setting is set.
var Misspelt = misspelt
