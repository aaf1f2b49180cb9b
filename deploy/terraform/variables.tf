variable "project" {
  description = "Project id; it exists and has billing."
  type        = string
}

variable "region" {
  description = "Of workers, buckets, images and schedules: one, as data that crosses regions cost."
  type        = string
  default     = "us-central1"
}

variable "prefix" {
  description = "What all names here start with; bucket names are unique in the world."
  type        = string
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,20}$", var.prefix))
    error_message = "prefix must have 3 to 21 lower-case letters, digits and hyphens, a letter first."
  }
}

variable "submitters" {
  description = "Who may submit jobs, for example group:em@example.org."
  type        = set(string)
  default     = []
}

variable "builders" {
  description = "Who may push images, for example serviceAccount:ci@PROJECT.iam.gserviceaccount.com."
  type        = set(string)
  default     = []
}

variable "reprocess" {
  description = "Runs to bring up to date on a schedule, by a short name: their directory, and cron."
  type = map(object({
    run_dir     = string
    cron        = string
    max_workers = optional(number, 32)
    paused      = optional(bool, false)
  }))
  default = {}
  validation {
    condition     = alltrue([for run in values(var.reprocess) : startswith(run.run_dir, "gs://")])
    error_message = "Every run_dir must be in a bucket, gs://..."
  }
}

variable "billing_account" {
  description = "Billing account of the project, XXXXXX-XXXXXX-XXXXXX."
  type        = string
}

variable "budget" {
  description = "Money per month, in whole units of the billing account's currency."
  type        = number
}

variable "budget_emails" {
  description = "Who is told at half, at nine tenths and at all of the budget."
  type        = set(string)
}

variable "kept_versions_days" {
  description = "Days that a file of a run is kept after it was replaced or deleted."
  type        = number
  default     = 30
}
