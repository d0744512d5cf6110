-- Loses every enrolment: no device can register until a new one is minted.
DROP TABLE enrollments;
