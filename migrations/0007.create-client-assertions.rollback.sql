-- Loses the memory of used assertions: for up to six minutes each could be used once more.
DROP TABLE client_assertions;
